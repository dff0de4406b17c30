"""How unlike the training images an image is, by the features that the network computes of it anyway."""
