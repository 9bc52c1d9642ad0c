"""Reading and acting on the node: paths under a root, processes, I/O priority, block devices."""
