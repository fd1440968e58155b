"""Where networks and pictures with masks come from."""
