//! Whether a Gateway's listeners ask their clients for certificates: `spec.tls.frontend`, and `frontendValidation` of a
//! listener's own `tls`, as earlier versions of the API have it.

use serde::Deserialize;

use super::super::field::Field;
use super::super::object::Notes;
use super::gateway_tls::RefSpec;
use crate::model::{ClientMode, ObjectName};

/// As many bundles as one listener may name (Gateway API).
const MAX_BUNDLES: usize = 8;

/// Whom a listener believes, as far as the Gateway alone says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayClients {
    /// The bundles, in written order.
    pub bundles: Vec<BundleRef>,
    /// What becomes of clients without a valid certificate.
    pub mode: ClientMode,
    /// The field that lists the bundles.
    pub field: Field,
}

/// A reference to CA certificates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BundleRef {
    /// Whether it is to a ConfigMap, the one kind that is taken.
    pub is_config_map: bool,
    /// The object.
    pub name: ObjectName,
}

/// `spec.tls`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct GatewayTlsSpec {
    frontend: FrontendSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct FrontendSpec {
    default: PortTlsSpec,
    per_port: Vec<PortSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PortTlsSpec {
    validation: Option<ValidationSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortSpec {
    port: u16,
    #[serde(default)]
    tls: PortTlsSpec,
}

/// `validation`, `frontendValidation`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ValidationSpec {
    ca_certificate_refs: Vec<RefSpec>,
    #[serde(default)]
    mode: ValidationMode,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
enum ValidationMode {
    #[default]
    AllowValidOnly,
    AllowInsecureFallback,
}

impl GatewayTlsSpec {
    /// What holds for the listeners of a port that say nothing themselves: the port's own, else the default, as a whole.
    pub fn of_port(&self, port: u16) -> Option<(&ValidationSpec, Field)> {
        let frontend = Field::spec().key("tls").key("frontend");
        let mut ports = self.frontend.per_port.iter().enumerate();
        if let Some((index, one)) = ports.find(|(_, one)| one.port == port) {
            let field = frontend.key("perPort").index(index).key("tls").key("validation");
            return one.tls.validation.as_ref().map(|validation| (validation, field));
        }
        let validation = self.frontend.default.validation.as_ref()?;
        Some((validation, frontend.key("default").key("validation")))
    }
}

impl ValidationSpec {
    /// What it asks for, in a Gateway of `namespace`.
    pub fn read(&self, namespace: &str, field: &Field, notes: &mut Notes<'_>) -> GatewayClients {
        let field = field.key("caCertificateRefs");
        if self.ca_certificate_refs.is_empty() || self.ca_certificate_refs.len() > MAX_BUNDLES {
            notes.error(&field, format!("1 to {MAX_BUNDLES} references are needed"));
        }
        let bundle = |one: &RefSpec| {
            let (is_config_map, name) = one.read("ConfigMap", namespace);
            BundleRef { is_config_map, name }
        };
        let mode = match self.mode {
            ValidationMode::AllowValidOnly => ClientMode::Required,
            ValidationMode::AllowInsecureFallback => ClientMode::Optional,
        };
        GatewayClients { bundles: self.ca_certificate_refs.iter().map(bundle).collect(), mode, field }
    }
}
