//! What a task shows a human beside its output. Needs no grant.
//!
//! At most 64 cards and 1 MiB an attempt; a card of the same title replaces the one before it.

/// Shows text in markdown.
pub fn markdown(title: &str, text: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::waft::flow::cards::markdown(title, text);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::note_card(crate::testing::Card::Markdown {
        title: title.to_string(),
        text: text.to_string(),
    });
}

/// Shows a table. Rows are cut or filled to the number of columns.
pub fn table<C, R>(
    title: &str,
    columns: impl IntoIterator<Item = C>,
    rows: impl IntoIterator<Item = R>,
) where
    C: Into<String>,
    R: IntoIterator,
    R::Item: Into<String>,
{
    let columns: Vec<String> = columns.into_iter().map(Into::into).collect();
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| row.into_iter().map(Into::into).collect())
        .collect();
    #[cfg(target_arch = "wasm32")]
    crate::bindings::waft::flow::cards::table(title, &columns, &rows);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::note_card(crate::testing::Card::Table {
        title: title.to_string(),
        columns,
        rows,
    });
}

/// Shows a link; `http` and `https` only.
pub fn link(title: &str, url: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::waft::flow::cards::link(title, url);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::note_card(crate::testing::Card::Link {
        title: title.to_string(),
        url: url.to_string(),
    });
}

/// Says how far the task is: `done` of `total` steps, and what it does now.
pub fn progress(done: u64, total: u64, message: &str) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::waft::flow::cards::progress(done, total, message);
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::note_card(crate::testing::Card::Progress {
        done,
        total,
        message: message.to_string(),
    });
}
