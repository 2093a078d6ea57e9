"""A finished run over HTTP: images in, answers out, and a page to try it on."""
