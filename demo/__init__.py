"""`make demo`: the portal with a tenant whose devices replay real data."""
