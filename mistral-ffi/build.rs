//! How the dynamic library is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A dependency that has a C interface of its own (llguidance) must not become part of ours.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
        // Threads of a model that was not freed, and thread-locals of the host's threads, run code of the library:
        // dlclose must leave it where it is.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
