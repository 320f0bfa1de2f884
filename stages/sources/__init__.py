"""Where photographs come from: tars and folders listed, photographs decoded."""
