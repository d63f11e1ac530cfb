//! Bundles: manifest, checksums, the one rename.
