"""What all other packages use: errors, atomic files, hashes, TOML, the console, progress bars, registries."""
