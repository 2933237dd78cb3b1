"""What every other package stands on: errors, whole files, hashes, TOML, the console, progress, registries."""
