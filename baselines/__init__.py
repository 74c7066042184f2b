"""Every method in the comparison, behind one protocol."""
