//! What the graph does next.
