//! Has the program compiled again when a file is added to the SDK that it carries.

fn main() {
    println!("cargo:rerun-if-changed=../sdk");
}
