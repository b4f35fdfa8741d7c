//! The models that Tanglescope measures.
