"""The step that trains a locator, which boxes the nodule where nobody has drawn a box."""
