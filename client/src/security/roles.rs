//! Roles that are not built in.

use aquifer_proto::v1;

use crate::error::Result;
use crate::security::{Client, Security, given, without};

/// A name for actions, which grants give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// The tenant that it belongs to; `None` for one of the cluster.
    pub tenant: Option<String>,
    /// The actions that it allows.
    pub actions: Vec<String>,
    /// Whether it is there without having been made.
    pub built_in: bool,
    /// When it was made, in ms since the Unix epoch.
    pub created_ms: u64,
    /// The principal that made it.
    pub created_by: String,
}

impl Security {
    /// Makes a role, of a tenant or of the cluster, of `describe`, `produce`, `consume`, `manage`.
    ///
    /// # Errors
    /// `AlreadyExists` for its name, `PermissionDenied`, `Invalid` for a name or an action, and
    /// what every call may answer.
    pub async fn create_role(
        &self,
        name: &str,
        tenant: Option<&str>,
        actions: &[String],
    ) -> Result<Role> {
        let request = v1::CreateRoleRequest {
            name: name.to_owned(),
            tenant: tenant.unwrap_or_default().to_owned(),
            actions: actions.to_vec(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.create_role(request).await }
        };
        let answer = self.call("making the role", true, call).await?;
        role(answer.role)
    }

    /// The roles that grants in a tenant, or in the cluster, may give: those that are built in,
    /// those of the cluster and those of the tenant.
    ///
    /// # Errors
    /// `PermissionDenied`, and what every call may answer.
    pub async fn list_roles(&self, tenant: Option<&str>) -> Result<Vec<Role>> {
        let request = v1::ListRolesRequest {
            tenant: tenant.unwrap_or_default().to_owned(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.list_roles(request).await }
        };
        let answer = self.call("listing roles", true, call).await?;
        Ok(answer.roles.into_iter().map(Role::from).collect())
    }

    /// A role of a tenant, or of the cluster.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, and what every call may answer.
    pub async fn get_role(&self, name: &str, tenant: Option<&str>) -> Result<Role> {
        let request = v1::GetRoleRequest {
            name: name.to_owned(),
            tenant: tenant.unwrap_or_default().to_owned(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.get_role(request).await }
        };
        role(self.call("asking for the role", true, call).await?.role)
    }

    /// Gives a role other actions. Grants that name it give these from then on.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `Invalid` for an action, and what every call may answer.
    pub async fn update_role(
        &self,
        name: &str,
        tenant: Option<&str>,
        actions: &[String],
    ) -> Result<Role> {
        let request = v1::UpdateRoleRequest {
            name: name.to_owned(),
            tenant: tenant.unwrap_or_default().to_owned(),
            actions: actions.to_vec(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.update_role(request).await }
        };
        role(self.call("changing the role", true, call).await?.role)
    }

    /// Deletes a role that no grant names.
    ///
    /// # Errors
    /// `FailedPrecondition` while a grant names it, `NotFound`, `PermissionDenied`, and what every
    /// call may answer.
    pub async fn delete_role(&self, name: &str, tenant: Option<&str>) -> Result<()> {
        let request = v1::DeleteRoleRequest {
            name: name.to_owned(),
            tenant: tenant.unwrap_or_default().to_owned(),
        };
        let call = move |mut client: Client| {
            let request = request.clone();
            async move { client.delete_role(request).await }
        };
        self.call("deleting the role", false, call)
            .await
            .map(|_| ())
    }
}

impl From<v1::Role> for Role {
    fn from(role: v1::Role) -> Role {
        Role {
            name: role.name,
            tenant: given(role.tenant),
            actions: role.actions,
            built_in: role.built_in,
            created_ms: role.created_ms,
            created_by: role.created_by,
        }
    }
}

fn role(role: Option<v1::Role>) -> Result<Role> {
    role.map(Role::from).ok_or_else(|| without("a role"))
}
