"""Style, plots, tables, gallery, claims."""
