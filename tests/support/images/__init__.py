"""Images and sites for tests of the container engines: a Triton image, a podman store, podman-hpc."""
