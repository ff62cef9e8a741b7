"""What is deployed, when and with which limits, and the command line on top of it all."""
