"""From a folder of images to samples and the manifest that pins every one of them."""
