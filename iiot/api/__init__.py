"""REST: one file per resource, views of a few lines, schemas beside them."""
