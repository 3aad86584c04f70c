"""The commands of `appliance`."""
