//! Every file under `refused/` does not compile, and the compiler says why at the author's line.
//!
//! After a change of words: `TRYBUILD=overwrite cargo test -p waft-sdk-refusals`, and read what changed.

#[test]
fn mistakes_are_refused_where_they_are_made() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("refused/*.rs");
    cases.pass("taken/*.rs");
}
