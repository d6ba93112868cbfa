//! Results of ADD: what a plugin printed, in the form of any version of the specification.
//!
//! ```text
//! 0.1.0 0.2.0         ip4 ip6 (one address each, with routes)       dns
//! 0.3.0 0.3.1 0.4.0   interfaces  ips (version, interface, …)  routes dns
//! 1.0.0 1.1.0         interfaces  ips (interface, …)           routes dns
//! ```
//!
//! Within one line the versions differ in nothing that must be converted, so what was
//! printed is passed on as it is, unknown fields included. Between lines it is read,
//! checked and written anew (CNI-17). [`merge`] makes of a pod's results the one that
//! stands in its record, in the form that the built-in plugin writes there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::Version;
use crate::config::IpPreference;
use crate::error::{Context, Result, unknown};
use crate::proto::is_zero;

/// The interface whose addresses are the pod's (CNI-18).
const POD_INTERFACE: &str = "eth0";

/// Three generations of the form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    TwoAddresses,
    NumberedAddresses,
    Modern,
}

/// A result in the newest form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CniResult {
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    ips: Vec<Address>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    dns: Dns,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    #[serde(default, deserialize_with = "nullable")]
    name: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    mac: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    sandbox: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    socket_path: String,
    #[serde(default, rename = "pciID", deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pci_id: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Address {
    /// Only in the second form: "4" or "6".
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
    address: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    gateway: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Route {
    dst: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    gw: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    advmss: i64,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Dns {
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    domain: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

/// The first form.
#[derive(Default, Serialize, Deserialize)]
struct OldResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip4: Option<OldAddress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ip6: Option<OldAddress>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct OldAddress {
    ip: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    gateway: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

/// `null` stands for a field's zero value, as Go's decoder has it.
fn nullable<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// Reads what a plugin printed and gives it in the version of its configuration, which
/// is also assumed where the plugin names none.
///
/// # Errors
/// If it is no JSON, of no known version, or cannot be said in that version.
pub(crate) fn from_output(output: &[u8], config_version: &str) -> Result<Value> {
    let mut value = match serde_json::from_slice(output) {
        Ok(Value::Object(object)) => object,
        Ok(Value::Null) => Map::new(),
        Ok(_) => return Err(unknown("the plugin's result is not a JSON object")),
        Err(error) => {
            return Err(unknown(format!(
                "the plugin's result is not valid JSON: {error}: {}",
                shown(output)
            )));
        }
    };
    let config_version = if config_version.is_empty() { "0.1.0" } else { config_version };
    if value.get("cniVersion").and_then(Value::as_str).is_none_or(str::is_empty) {
        value.insert("cniVersion".to_owned(), config_version.into());
    }
    convert(value.into(), config_version)
}

/// The beginning of a plugin's output, for a message.
fn shown(output: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&output[..output.len().min(200)]))
}

/// Gives `value` in the version `to`.
///
/// # Errors
/// As [`from_output`].
pub(crate) fn convert(value: Value, to: &str) -> Result<Value> {
    let from = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if from == to {
        return Ok(value);
    }
    let (from_form, to_form) = (form(from)?, form(to)?);
    let mut value = if from_form == to_form {
        value
    } else {
        let mut result = CniResult::read(&value)?;
        let written = match to_form {
            Form::TwoAddresses => serde_json::to_value(result.into_old()?),
            Form::NumberedAddresses => {
                for interface in &mut result.interfaces {
                    let name = std::mem::take(&mut interface.name);
                    let mac = std::mem::take(&mut interface.mac);
                    let sandbox = std::mem::take(&mut interface.sandbox);
                    *interface = Interface { name, mac, sandbox, ..Interface::default() };
                }
                for ip in &mut result.ips {
                    ip.version = if is_ipv4(&ip.address) { "4" } else { "6" }.to_owned();
                }
                serde_json::to_value(result)
            }
            Form::Modern => serde_json::to_value(result),
        };
        written.map_err(|error| unknown(error.to_string()))?
    };
    value["cniVersion"] = to.into();
    Ok(value)
}

fn form(version: &str) -> Result<Form> {
    match version {
        "" | "0.1.0" | "0.2.0" => Ok(Form::TwoAddresses),
        "0.3.0" | "0.3.1" | "0.4.0" => Ok(Form::NumberedAddresses),
        "1.0.0" | "1.1.0" => Ok(Form::Modern),
        other => {
            Err(unknown(format!("a result of CNI version {other:?}: known is up to {}", Version::NEWEST)))
        }
    }
}

impl CniResult {
    /// Reads a result of any version and checks it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(value: &Value) -> Result<CniResult> {
        let version = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
        let malformed = |error: serde_json::Error| {
            unknown(format!("a malformed result of CNI version {version:?}: {error}"))
        };
        let mut result = match form(version)? {
            Form::TwoAddresses => CniResult::from_old(OldResult::deserialize(value).map_err(malformed)?),
            Form::NumberedAddresses | Form::Modern => CniResult::deserialize(value).map_err(malformed)?,
        };
        for ip in &mut result.ips {
            checked_address(&ip.address)?;
            ip.version.clear();
            let known = ip.interface.is_none_or(|index| {
                usize::try_from(index).is_ok_and(|index| index < result.interfaces.len())
            });
            if !known {
                return Err(unknown(format!(
                    "a malformed result: address {} is on interface number {} of {}",
                    ip.address,
                    ip.interface.unwrap_or_default(),
                    result.interfaces.len()
                )));
            }
            if !ip.gateway.is_empty() {
                ip.gateway
                    .parse::<IpAddr>()
                    .map_err(|_| unknown(format!("gateway {:?} is no address", ip.gateway)))?;
            }
        }
        for route in &result.routes {
            checked_address(&route.dst).context(|| "route")?;
        }
        Ok(result)
    }

    /// `127.0.0.1` and `::1` on `lo` in the namespace at `sandbox`: what the loopback
    /// plugin would have answered.
    pub(crate) fn loopback(sandbox: &str, has_ipv6: bool) -> CniResult {
        let lo = Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        };
        let addresses = ["127.0.0.1/8", "::1/128"].into_iter().take(if has_ipv6 { 2 } else { 1 });
        let ips = addresses
            .map(|address| Address { address: address.to_owned(), interface: Some(0), ..Address::default() })
            .collect();
        CniResult { interfaces: vec![lo], ips, ..CniResult::default() }
    }

    fn from_old(old: OldResult) -> CniResult {
        let mut result = CniResult { dns: old.dns, ..CniResult::default() };
        for ip in [old.ip4, old.ip6].into_iter().flatten() {
            result.ips.push(Address { address: ip.ip, gateway: ip.gateway, ..Address::default() });
            result.routes.extend(ip.routes);
        }
        result
    }

    /// The first form has room for one address of each family only.
    fn into_old(self) -> Result<OldResult> {
        let mut old = OldResult { dns: self.dns, ..OldResult::default() };
        for ip in self.ips {
            let slot = if is_ipv4(&ip.address) { &mut old.ip4 } else { &mut old.ip6 };
            slot.get_or_insert(OldAddress { ip: ip.address, gateway: ip.gateway, routes: Vec::new() });
        }
        if old.ip4.is_none() && old.ip6.is_none() {
            return Err(unknown("a result without addresses has no form before CNI version 0.3.0"));
        }
        for route in self.routes {
            let slot = if is_ipv4(&route.dst) { &mut old.ip4 } else { &mut old.ip6 };
            if let Some(ip) = slot {
                ip.routes.push(Route { dst: route.dst, gw: route.gw, ..Route::default() });
            }
        }
        Ok(old)
    }

    /// The interface of an address: that of its number, or else `attached`.
    fn interface_of<'a>(&'a self, ip: &Address, attached: &'a str) -> &'a str {
        ip.interface
            .and_then(|index| self.interfaces.get(usize::try_from(index).ok()?))
            .map_or(attached, |interface| interface.name.as_str())
    }

    /// Whether an address is on the host's side although its interface has the name of
    /// one in the pod. Plugins that never tell the sandbox are given the benefit of doubt.
    fn is_on_host(&self, ip: &Address) -> bool {
        let Some(interface) =
            ip.interface.and_then(|index| self.interfaces.get(usize::try_from(index).ok()?))
        else {
            return false;
        };
        interface.sandbox.is_empty()
            && self.interfaces.iter().any(|other| other.name == interface.name && !other.sandbox.is_empty())
    }
}

fn is_ipv4(cidr: &str) -> bool {
    address_of(cidr).is_some_and(|address| address.is_ipv4())
}

/// The address of `address/prefix length`; None if it is something else.
pub(crate) fn address_of(cidr: &str) -> Option<IpAddr> {
    let (address, length) = cidr.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let is_number = !length.is_empty() && length.bytes().all(|c| c.is_ascii_digit());
    (is_number && length.parse::<u8>().ok()? <= longest).then(|| address.to_canonical())
}

fn checked_address(cidr: &str) -> Result<IpAddr> {
    address_of(cidr).ok_or_else(|| {
        unknown(format!("a malformed result: {cidr:?} is not an address with a prefix length"))
    })
}

/// A pod's results as one.
pub(crate) struct Merged {
    /// The pod's addresses, the first one first (CNI-18, CNI-19); may be empty.
    pub(crate) ips: Vec<IpAddr>,
    /// `CNIResult` of the built-in plugin's sandbox record.
    pub(crate) record: Value,
}

/// Merges the results of a pod's networks, each with the interface that it was attached
/// by, in the order of the configuration.
///
/// # Errors
/// None as long as the results come from [`CniResult::read`].
pub(crate) fn merge(results: &[(&str, CniResult)], preference: IpPreference) -> Result<Merged> {
    #[derive(Default)]
    struct Merging<'a> {
        interface: Option<&'a Interface>,
        ips: Vec<(IpAddr, &'a str)>,
    }
    let mut interfaces = BTreeMap::<&str, Merging<'_>>::from([(POD_INTERFACE, Merging::default())]);
    let (mut dns, mut routes) = (Vec::new(), Vec::new());
    for (attached, result) in results {
        for interface in &result.interfaces {
            let known = interfaces.entry(&interface.name).or_default();
            // The pod's side is worth more than a host's interface of the same name.
            if !interface.sandbox.is_empty() || known.interface.is_none_or(|i| i.sandbox.is_empty()) {
                known.interface = Some(interface);
            }
        }
        for ip in result.ips.iter().filter(|ip| !result.is_on_host(ip)) {
            let known = interfaces.entry(result.interface_of(ip, attached)).or_default();
            known.ips.push((checked_address(&ip.address)?, &ip.gateway));
        }
        dns.push(json!(result.dns));
        routes.extend(result.routes.iter().map(|route| json!(route)));
    }
    let ips = interfaces[POD_INTERFACE].ips.iter().map(|(ip, _)| *ip).collect();
    let interfaces: Map<String, Value> = interfaces
        .into_iter()
        .map(|(name, Merging { interface, ips })| {
            let ips: Vec<Value> =
                ips.iter().map(|(ip, gateway)| json!({ "IP": ip.to_string(), "Gateway": gateway })).collect();
            let text = |get: fn(&Interface) -> &String| interface.map(get).cloned().unwrap_or_default();
            let config = json!({
                "IPConfigs": none_if_empty(ips),
                "Mac": text(|interface| &interface.mac),
                "Sandbox": text(|interface| &interface.sandbox),
                "PciID": text(|interface| &interface.pci_id),
                "SocketPath": text(|interface| &interface.socket_path),
            });
            (name.to_owned(), config)
        })
        .collect();
    let record =
        json!({ "Interfaces": interfaces, "DNS": none_if_empty(dns), "Routes": none_if_empty(routes) });
    Ok(Merged { ips: preferred_first(ips, preference), record })
}

/// An empty list is `null` in the records, as Go writes it.
fn none_if_empty(list: Vec<Value>) -> Option<Vec<Value>> {
    (!list.is_empty()).then_some(list)
}

/// Moves the first address of the preferred family to the front; the others keep their order.
fn preferred_first(mut ips: Vec<IpAddr>, preference: IpPreference) -> Vec<IpAddr> {
    let preferred = match preference {
        IpPreference::Ipv4 => ips.iter().position(IpAddr::is_ipv4),
        IpPreference::Ipv6 => ips.iter().position(IpAddr::is_ipv6),
        IpPreference::Cni => None,
    };
    if let Some(position) = preferred {
        ips[..=position].rotate_right(1);
    }
    ips
}

#[cfg(test)]
mod tests;
