"""Sound: files, spectrograms, augmentation, and speech that is made on the spot."""
