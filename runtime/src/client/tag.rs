//! Calls about tags of tasks.

use super::call::{Call, encoded};
use super::{Client, ClientError};
use crate::wire::{ListQuery, Page, Slots, Tag};

impl Client {
    /// Lists the tags that have a number of slots, by project and name.
    ///
    /// # Errors
    ///
    /// `project-unknown`.
    pub async fn list_tags(&self, query: &ListQuery) -> Result<Page<Tag>, ClientError> {
        self.call(Call::get("/api/tags").query(query)).await
    }

    /// Sets how many task runs with a tag may run at one time in a project.
    ///
    /// # Errors
    ///
    /// `project-unknown`, `name-bad`, `value-bad`.
    pub async fn set_tag_slots(
        &self,
        project: &str,
        tag: &str,
        slots: &Slots,
    ) -> Result<Tag, ClientError> {
        let path = format!(
            "/api/projects/{}/tags/{}/slots",
            encoded(project),
            encoded(tag)
        );
        self.call(Call::put(path, slots).repeatable()).await
    }
}
