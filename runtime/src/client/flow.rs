//! Calls about flows.

use http::Method;

use super::call::{Call, encoded};
use super::{Client, ClientError};
use crate::wire::{
    Cancelled, Flow, FlowVersion, ListQuery, NewRollback, Page, Registered, ResumeQuery, Slots,
};

impl Client {
    /// Lists flows by project and name.
    ///
    /// # Errors
    ///
    /// As every call here.
    pub async fn list_flows(&self, query: &ListQuery) -> Result<Page<Flow>, ClientError> {
        self.call(Call::get("/api/flows").query(query)).await
    }

    /// Shows a flow: by id, by name where unique, or as `project/flow`.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`.
    pub async fn flow(&self, flow: &str) -> Result<Flow, ClientError> {
        self.call(Call::get(format!("/api/flows/{}", encoded(flow))))
            .await
    }

    /// Asks for every run of a flow to be stopped that is not over.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`.
    pub async fn cancel_all(&self, flow: &str) -> Result<Cancelled, ClientError> {
        self.call(Call::new(
            Method::POST,
            format!("/api/flows/{}/cancel", encoded(flow)),
        ))
        .await
    }

    /// Lists the versions of a flow, newest first, whole.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`.
    pub async fn flow_versions(
        &self,
        flow: &str,
        query: &ListQuery,
    ) -> Result<Page<FlowVersion>, ClientError> {
        let path = format!("/api/flows/{}/versions", encoded(flow));
        self.call(Call::get(path).query(query)).await
    }

    /// Makes another version of a flow the current one.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`, `flow-archived`, `version-unknown`.
    pub async fn roll_back(
        &self,
        flow: &str,
        back: &NewRollback,
    ) -> Result<Registered, ClientError> {
        let path = format!("/api/flows/{}/rollback", encoded(flow));
        self.call(Call::post(path, back)).await
    }

    /// Lets the schedule of a flow rest.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`.
    pub async fn pause_flow(&self, flow: &str) -> Result<Flow, ClientError> {
        self.change_flow(flow, "pause").await
    }

    /// Lets the schedule of a flow go on.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`.
    pub async fn resume_flow(&self, flow: &str, query: &ResumeQuery) -> Result<Flow, ClientError> {
        let path = format!("/api/flows/{}/resume", encoded(flow));
        let call = Call::new(Method::POST, path).query(query);
        self.call(call.repeatable()).await
    }

    /// Sets how many runs of a flow agents may have at one time.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`, `value-bad`.
    pub async fn set_flow_slots(&self, flow: &str, slots: &Slots) -> Result<Flow, ClientError> {
        let path = format!("/api/flows/{}/slots", encoded(flow));
        self.call(Call::put(path, slots).repeatable()).await
    }

    /// Archives a flow: it takes no runs until it is registered again.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`.
    pub async fn archive_flow(&self, flow: &str) -> Result<Flow, ClientError> {
        self.change_flow(flow, "archive").await
    }

    async fn change_flow(&self, flow: &str, verb: &str) -> Result<Flow, ClientError> {
        let path = format!("/api/flows/{}/{verb}", encoded(flow));
        self.call(Call::new(Method::POST, path).repeatable()).await
    }

    /// Deletes a flow with its versions and runs.
    ///
    /// # Errors
    ///
    /// `flow-unknown`, `flow-ambiguous`, `flow-busy` while a run of it is at work.
    pub async fn delete_flow(&self, flow: &str) -> Result<(), ClientError> {
        let path = format!("/api/flows/{}", encoded(flow));
        self.call_empty(Call::new(Method::DELETE, path)).await
    }
}
