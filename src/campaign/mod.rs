//! The user's TOML: types, validation with file, line and remedy, defaults.
