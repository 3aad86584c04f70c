"""One file for each wire protocol: its wire types and its routes."""
