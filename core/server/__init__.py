"""HTTP. One file per API family over one engine client."""
