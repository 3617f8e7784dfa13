"""What answers: the frozen backbone, its chat template, its split into trunk and upper layers, its adapters."""
