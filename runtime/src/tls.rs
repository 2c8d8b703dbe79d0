//! Which cryptography this process uses: ring, for everything that speaks TLS.

/// Installs it, unless somebody has. Called before a client is made.
pub fn install() {
    // Whoever came first installed the same.
    drop(rustls::crypto::ring::default_provider().install_default());
}
