"""Everything that plays pod: the embedded pod and the images for rented machines; never imports controlplane."""
