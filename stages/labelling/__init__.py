"""Stage 1: from sources of photographs to committed parts of labels."""
