"""What the tests of the container engines run: an image with a Triton, a store of podman's, a podman-hpc."""
