//! What beampilot knows about the places it runs.
