"""The page: what is heard now and was heard before, in a browser."""
