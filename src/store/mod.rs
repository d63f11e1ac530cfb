//! Everything under the state folder: claims, journal, records; the `Fs` trait.
