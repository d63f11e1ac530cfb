//! Chunks against what they were made of, against Python's plugins where they are, and against damage.
