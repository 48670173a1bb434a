"""From decoded views to a batch: one affine map per view, colour changes, collation, loading."""
