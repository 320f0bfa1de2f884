"""What the pages have in common, the gallery's and the report's: their look, and the large view of pictures and maps."""
