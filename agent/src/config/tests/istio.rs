//! Istio's semantics of PeerAuthentication and AuthorizationPolicy, one row a case: documents in, verdict and deciding policy out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{load_texts, messages};
use crate::compile::{PolicyClient, Realm, RoutingTable, TableVersion, Way, compile};
use crate::config::Severity;
use crate::model::Asked;
use crate::model::authorization_tests::Made;

/// Documents, and what becomes of connections and requests to the pod `shop/web` under them.
struct Group {
    /// `NAMESPACE/NAME[@LABEL=VALUE] ACTION RULES`, or `NAMESPACE/NAME[@LABEL=VALUE] PEER SPEC`; `?` behind an action: a dry run.
    documents: &'static [&'static str],
    rows: &'static [Row],
}

/// Who asks, the pod's port, what is asked for, and what becomes of it.
///
/// Who: a pod's name, as it comes by itself; with `~` behind it, in plaintext; an address; `gw:` before it: through a Gateway.
/// What: empty for an opaque connection, else `METHOD PATH HOST FIELD=VALUE...`.
/// Becomes: `allow`, or the policy and its rule.
type Row = (&'static str, u16, &'static str, &'static str);

/// `cart` and `web` are pods of this node; `job` and `bare` are of another, from which `job` comes by tunnel.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front, networking.istio.io/tunnel: http}}
spec: {nodeName: here, serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: here, serviceAccountName: cart}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: back, labels: {app: job, networking.istio.io/tunnel: http}}
spec: {nodeName: there, serviceAccountName: job}
status: {podIP: 10.0.1.1}
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: back}
spec: {nodeName: there}
status: {podIP: 10.0.1.2}
";

const GROUPS: &[Group] = &[
    // Without policies everybody is let in.
    Group { documents: &[], rows: &[("cart", 80, "", "allow"), ("192.0.2.7", 80, "GET / web", "allow")] },
    // An ALLOW policy without rules lets nobody in, a DENY policy without rules refuses nobody.
    Group {
        documents: &["shop/none ALLOW []"],
        rows: &[
            ("cart", 80, "", "shop/none none"),
            ("job", 80, "GET / web", "shop/none none"),
            ("192.0.2.7", 80, "", "shop/none none"),
        ],
    },
    Group {
        documents: &["shop/none DENY []"],
        rows: &[("cart", 80, "", "allow"), ("192.0.2.7", 80, "", "allow")],
    },
    Group {
        documents: &["shop/all ALLOW [{}]"],
        rows: &[("192.0.2.7", 80, "", "allow"), ("job~", 80, "GET / web", "allow")],
    },
    Group {
        documents: &["shop/all DENY [{}]"],
        rows: &[("192.0.2.7", 80, "", "shop/all 0"), ("cart", 80, "GET / web", "shop/all 0")],
    },
    // DENY comes before ALLOW; any ALLOW policy is enough.
    Group {
        documents: &["shop/a ALLOW [{}]", "shop/d DENY [{to: [{operation: {ports: ['22']}}]}]"],
        rows: &[
            ("cart", 22, "", "shop/d 0"),
            ("cart", 80, "", "allow"),
            ("192.0.2.7", 22, "GET / web", "shop/d 0"),
        ],
    },
    Group {
        documents: &["shop/a ALLOW []", "shop/b ALLOW [{to: [{operation: {ports: ['80']}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("cart", 81, "", "shop/a none")],
    },
    // Namespaces, selectors and the root namespace.
    Group {
        documents: &["back/d DENY [{}]", "shop/d@app=cart DENY [{}]"],
        rows: &[("192.0.2.7", 80, "", "allow")],
    },
    Group { documents: &["shop/d@app=web DENY [{}]"], rows: &[("cart", 80, "", "shop/d 0")] },
    Group { documents: &["istio-system/d DENY [{}]"], rows: &[("cart", 80, "", "istio-system/d 0")] },
    Group { documents: &["istio-system/d@app=web DENY [{}]"], rows: &[("cart", 80, "", "istio-system/d 0")] },
    Group { documents: &["istio-system/d@app=cart DENY [{}]"], rows: &[("cart", 80, "", "allow")] },
    Group {
        documents: &["istio-system/a ALLOW []", "shop/a ALLOW [{}]"],
        rows: &[("cart", 80, "", "allow"), ("192.0.2.7", 80, "", "allow")],
    },
    // Principals need proof: the pod beside it and what comes by tunnel have it, plaintext and Gateways have none.
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: [mesh.test/ns/shop/sa/cart]}}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("cart", 80, "GET / web", "allow"),
            ("gw:10.0.0.2", 80, "", "shop/p none"),
            ("job", 80, "", "shop/p none"),
            ("job~", 80, "", "shop/p none"),
            ("192.0.2.7", 80, "", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: [mesh.test/ns/back/sa/job]}}]}]"],
        rows: &[
            ("job", 80, "", "allow"),
            ("job~", 80, "", "shop/p none"),
            ("bare~", 80, "", "shop/p none"),
            ("cart", 80, "", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: ['*']}}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("job", 80, "", "allow"),
            ("job~", 80, "", "shop/p none"),
            ("bare~", 80, "", "shop/p none"),
            ("192.0.2.7", 80, "", "shop/p none"),
            ("gw:192.0.2.7", 80, "GET / web", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: ['mesh.test/ns/shop/*']}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("job", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: ['*/sa/job']}}]}]"],
        rows: &[("cart", 80, "", "shop/p none"), ("job", 80, "", "allow")],
    },
    // `cluster.local` stands for the mesh's own trust domain, others for themselves.
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: [cluster.local/ns/shop/sa/cart]}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("job", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: [other.test/ns/shop/sa/cart]}}]}]"],
        rows: &[("cart", 80, "", "shop/p none")],
    },
    Group {
        documents: &[
            "shop/p ALLOW [{from: [{source: {principals: ['spiffe://mesh.test/ns/shop/sa/cart']}}]}]",
        ],
        rows: &[("cart", 80, "", "shop/p none")],
    },
    Group {
        documents: &[
            "shop/p DENY [{from: [{source: {principals: ['*/sa/nobody', mesh.test/ns/back/sa/job]}}]}]",
        ],
        rows: &[("job", 80, "", "shop/p 0"), ("job~", 80, "", "allow"), ("cart", 80, "", "allow")],
    },
    // What is not proven is none of the principals that a rule excludes.
    Group {
        documents: &["shop/p DENY [{from: [{source: {notPrincipals: ['*']}}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("job", 80, "GET / web", "allow"),
            ("job~", 80, "", "shop/p 0"),
            ("192.0.2.7", 80, "", "shop/p 0"),
            ("gw:192.0.2.7", 80, "", "shop/p 0"),
        ],
    },
    Group {
        documents: &["shop/p DENY [{from: [{source: {notPrincipals: [mesh.test/ns/shop/sa/cart]}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("job", 80, "", "shop/p 0"), ("192.0.2.7", 80, "", "shop/p 0")],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {principals: ['*'], notPrincipals: ['*/sa/job']}}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("job", 80, "", "shop/p none"),
            ("192.0.2.7", 80, "", "shop/p none"),
        ],
    },
    // Service accounts: of the policy's own namespace where none is named, in any trust domain.
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {serviceAccounts: [cart, back/job]}}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("job", 80, "", "allow"),
            ("job~", 80, "", "shop/p none"),
            ("bare~", 80, "", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {serviceAccounts: [job]}}]}]"],
        rows: &[("job", 80, "", "shop/p none")],
    },
    Group {
        documents: &["istio-system/p ALLOW [{from: [{source: {serviceAccounts: [cart]}}]}]"],
        rows: &[("cart", 80, "", "istio-system/p none")],
    },
    Group {
        documents: &["shop/p DENY [{from: [{source: {notServiceAccounts: [shop/cart]}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("job", 80, "", "shop/p 0"), ("192.0.2.7", 80, "", "shop/p 0")],
    },
    // Namespaces are those of the sender's address.
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {namespaces: [back]}}]}]"],
        rows: &[
            ("job", 80, "", "allow"),
            ("job~", 80, "", "allow"),
            ("cart", 80, "", "shop/p none"),
            ("192.0.2.7", 80, "", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {namespaces: ['sh*', '*ck']}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("bare~", 80, "", "allow"), ("192.0.2.7", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p DENY [{from: [{source: {notNamespaces: [shop]}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("bare~", 80, "", "shop/p 0"), ("192.0.2.7", 80, "", "shop/p 0")],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {namespaces: ['*'], notNamespaces: [back]}}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("job", 80, "", "shop/p none"),
            ("192.0.2.7", 80, "", "shop/p none"),
        ],
    },
    // Addresses.
    Group {
        documents: &[
            "shop/p ALLOW [{from: [{source: {ipBlocks: [192.0.2.0/24], notIpBlocks: [192.0.2.7]}}]}]",
        ],
        rows: &[
            ("192.0.2.8", 80, "", "allow"),
            ("192.0.2.7", 80, "", "shop/p none"),
            ("198.51.100.1", 80, "", "shop/p none"),
            ("gw:192.0.2.8", 80, "GET / web", "allow"),
        ],
    },
    Group {
        documents: &["shop/p DENY [{from: [{source: {remoteIpBlocks: [192.0.2.0/24]}}]}]"],
        rows: &[
            ("192.0.2.8", 80, "", "shop/p 0"),
            ("gw:192.0.2.8", 80, "", "shop/p 0"),
            ("cart", 80, "", "allow"),
        ],
    },
    Group {
        documents: &[
            "shop/p ALLOW [{from: [{source: {ipBlocks: [192.0.2.0/24], remoteIpBlocks: [192.0.2.0/25]}}]}]",
        ],
        rows: &[("192.0.2.8", 80, "", "allow"), ("192.0.2.200", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p DENY [{from: [{source: {notRemoteIpBlocks: [10.0.0.0/8]}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("192.0.2.8", 80, "", "shop/p 0")],
    },
    // Sources are alternatives; the fields of one must all hold.
    Group {
        documents: &[
            "shop/p ALLOW [{from: [{source: {namespaces: [back]}}, {source: {principals: ['*/sa/cart']}}]}]",
        ],
        rows: &[("bare~", 80, "", "allow"), ("cart", 80, "", "allow"), ("192.0.2.7", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p ALLOW [{from: [{source: {namespaces: [back], principals: ['*']}}]}]"],
        rows: &[("job", 80, "", "allow"), ("job~", 80, "", "shop/p none"), ("cart", 80, "", "shop/p none")],
    },
    // `from`, `to` and `when` must all hold; rules are alternatives, and the first that matches is named.
    Group {
        documents: &[
            "shop/p DENY [{from: [{source: {namespaces: [back]}}], to: [{operation: {ports: ['80']}}], when: [{key: source.principal, values: ['*']}]}]",
        ],
        rows: &[
            ("job", 80, "", "shop/p 0"),
            ("job", 81, "", "allow"),
            ("job~", 80, "", "allow"),
            ("cart", 80, "", "allow"),
        ],
    },
    Group {
        documents: &[
            "shop/p DENY [{to: [{operation: {ports: ['22']}}]}, {from: [{source: {namespaces: [back]}}]}, {}]",
        ],
        rows: &[("job", 22, "", "shop/p 0"), ("job", 80, "", "shop/p 1"), ("cart", 80, "", "shop/p 2")],
    },
    // Ports.
    Group {
        documents: &["shop/p ALLOW [{to: [{operation: {ports: ['80', '443']}}]}]"],
        rows: &[("cart", 443, "", "allow"), ("cart", 8080, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p DENY [{to: [{operation: {notPorts: ['80']}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("cart", 81, "", "shop/p 0")],
    },
    // Requests.
    Group {
        documents: &["shop/p ALLOW [{to: [{operation: {methods: [GET, 'H*']}}]}]"],
        rows: &[
            ("cart", 80, "GET / web", "allow"),
            ("cart", 80, "HEAD / web", "allow"),
            ("cart", 80, "POST / web", "shop/p none"),
            ("cart", 80, "get / web", "shop/p none"),
        ],
    },
    Group {
        documents: &[
            "shop/p ALLOW [{to: [{operation: {paths: [/ok, '/pub/*', '*.png', '/u/{*}/x', '/t/{**}']}}]}]",
        ],
        rows: &[
            ("cart", 80, "GET /ok web", "allow"),
            ("cart", 80, "GET /ok/ web", "shop/p none"),
            ("cart", 80, "GET /pub/a/b web", "allow"),
            ("cart", 80, "GET /a.png web", "allow"),
            ("cart", 80, "GET /u/7/x web", "allow"),
            ("cart", 80, "GET /u/7/8/x web", "shop/p none"),
            ("cart", 80, "GET /t/7/8 web", "allow"),
        ],
    },
    Group {
        documents: &["shop/p DENY [{to: [{operation: {notPaths: ['/healthz']}}]}]"],
        rows: &[("cart", 80, "GET /healthz web", "allow"), ("cart", 80, "GET / web", "shop/p 0")],
    },
    Group {
        documents: &["shop/p ALLOW [{to: [{operation: {hosts: [shop.test, '*.shop.test']}}]}]"],
        rows: &[
            ("cart", 80, "GET / shop.test", "allow"),
            ("cart", 80, "GET / SHOP.test:8080", "allow"),
            ("cart", 80, "GET / a.shop.test", "allow"),
            ("cart", 80, "GET / other.test", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p DENY [{to: [{operation: {notHosts: ['shop.test']}}]}]"],
        rows: &[("cart", 80, "GET / shop.test", "allow"), ("cart", 80, "GET / other.test", "shop/p 0")],
    },
    Group {
        documents: &[
            "shop/p ALLOW [{to: [{operation: {methods: [GET], paths: [/a]}}, {operation: {methods: [POST]}}]}]",
        ],
        rows: &[
            ("cart", 80, "GET /a web", "allow"),
            ("cart", 80, "GET /b web", "shop/p none"),
            ("cart", 80, "POST /b web", "allow"),
        ],
    },
    // Where there are no requests an ALLOW rule that asks of them never matches, and a DENY rule as if it asked nothing.
    Group {
        documents: &["shop/p ALLOW [{to: [{operation: {methods: [GET]}}]}]"],
        rows: &[("cart", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p DENY [{to: [{operation: {methods: [GET], ports: ['80']}}]}]"],
        rows: &[("cart", 80, "", "shop/p 0"), ("cart", 81, "", "allow"), ("cart", 80, "PUT / web", "allow")],
    },
    Group {
        documents: &[
            "shop/p ALLOW [{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {ports: ['81']}}]}]",
        ],
        rows: &[
            ("cart", 80, "", "shop/p none"),
            ("cart", 81, "", "allow"),
            ("cart", 81, "PUT / web", "allow"),
        ],
    },
    // Conditions.
    Group {
        documents: &["shop/p ALLOW [{when: [{key: 'request.headers[X-Role]', values: [admin, 'o*']}]}]"],
        rows: &[
            ("cart", 80, "GET / web x-role=admin", "allow"),
            ("cart", 80, "GET / web x-role=ops", "allow"),
            ("cart", 80, "GET / web x-role=user", "shop/p none"),
            ("cart", 80, "GET / web", "shop/p none"),
            ("cart", 80, "", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p DENY [{when: [{key: 'request.headers[x-role]', notValues: [admin]}]}]"],
        rows: &[
            ("cart", 80, "GET / web x-role=admin", "allow"),
            ("cart", 80, "GET / web x-role=user", "shop/p 0"),
            ("cart", 80, "GET / web", "shop/p 0"),
        ],
    },
    Group {
        documents: &["shop/p ALLOW [{when: [{key: source.principal, values: [mesh.test/ns/shop/sa/cart]}]}]"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("job", 80, "", "shop/p none"),
            ("192.0.2.7", 80, "", "shop/p none"),
        ],
    },
    Group {
        documents: &["shop/p DENY [{when: [{key: source.principal, notValues: ['mesh.test/ns/shop/*']}]}]"],
        rows: &[("cart", 80, "", "allow"), ("job", 80, "", "shop/p 0"), ("job~", 80, "", "shop/p 0")],
    },
    Group {
        documents: &["shop/p ALLOW [{when: [{key: source.serviceAccount, values: [back/job]}]}]"],
        rows: &[("job", 80, "", "allow"), ("cart", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p ALLOW [{when: [{key: source.namespace, values: [shop]}]}]"],
        rows: &[("cart", 80, "", "allow"), ("job", 80, "", "shop/p none")],
    },
    Group {
        documents: &[
            "shop/p DENY [{when: [{key: source.ip, values: [192.0.2.0/24]}, {key: remote.ip, notValues: [192.0.2.7]}]}]",
        ],
        rows: &[("192.0.2.8", 80, "", "shop/p 0"), ("192.0.2.7", 80, "", "allow"), ("cart", 80, "", "allow")],
    },
    Group {
        documents: &["shop/p DENY [{when: [{key: destination.ip, values: [10.0.0.0/24]}]}]"],
        rows: &[("cart", 80, "", "shop/p 0"), ("192.0.2.7", 80, "", "shop/p 0")],
    },
    Group {
        documents: &["shop/p DENY [{when: [{key: destination.ip, notValues: [10.0.0.1]}]}]"],
        rows: &[("cart", 80, "", "allow")],
    },
    Group {
        documents: &["shop/p ALLOW [{when: [{key: destination.ip, values: [10.9.0.1]}]}]"],
        rows: &[("cart", 80, "", "shop/p none")],
    },
    Group {
        documents: &["shop/p ALLOW [{when: [{key: destination.port, values: ['80']}]}]"],
        rows: &[("cart", 80, "", "allow"), ("cart", 81, "", "shop/p none")],
    },
    // AUDIT and dry runs refuse nobody.
    Group {
        documents: &["shop/p AUDIT [{}]"],
        rows: &[("192.0.2.7", 80, "", "allow"), ("cart", 80, "GET / web", "allow")],
    },
    Group {
        documents: &["shop/p AUDIT [{}]", "shop/q ALLOW [{from: [{source: {principals: ['*']}}]}]"],
        rows: &[("cart", 80, "", "allow"), ("192.0.2.7", 80, "", "shop/q none")],
    },
    Group { documents: &["shop/p DENY? [{}]"], rows: &[("192.0.2.7", 80, "", "allow")] },
    Group { documents: &["shop/p ALLOW? []"], rows: &[("192.0.2.7", 80, "", "allow")] },
    Group {
        documents: &["shop/p ALLOW? [{}]", "shop/q ALLOW [{to: [{operation: {ports: ['80']}}]}]"],
        rows: &[("192.0.2.7", 80, "", "allow"), ("192.0.2.7", 81, "", "shop/q none")],
    },
    // PeerAuthentication: STRICT lets in whom somebody has proven.
    Group {
        documents: &["istio-system/m PEER {mtls: {mode: STRICT}}"],
        rows: &[
            ("cart", 80, "", "allow"),
            ("cart", 80, "GET / web", "allow"),
            ("job", 80, "", "allow"),
            ("job~", 80, "", "istio-system/m plaintext"),
            ("bare~", 80, "GET / web", "istio-system/m plaintext"),
            ("192.0.2.7", 80, "", "istio-system/m plaintext"),
            ("gw:192.0.2.7", 80, "GET / web", "istio-system/m plaintext"),
            ("gw:10.0.0.2", 80, "", "istio-system/m plaintext"),
        ],
    },
    Group {
        documents: &["istio-system/m PEER {mtls: {mode: STRICT}}", "shop/n PEER {mtls: {mode: PERMISSIVE}}"],
        rows: &[("192.0.2.7", 80, "", "allow")],
    },
    Group {
        documents: &["istio-system/m PEER {mtls: {mode: PERMISSIVE}}", "shop/n PEER {mtls: {mode: STRICT}}"],
        rows: &[("192.0.2.7", 80, "", "shop/n plaintext"), ("job", 80, "", "allow")],
    },
    Group {
        documents: &["istio-system/m PEER {mtls: {mode: STRICT}}", "shop/n PEER {mtls: {mode: UNSET}}"],
        rows: &[("192.0.2.7", 80, "", "istio-system/m plaintext")],
    },
    Group {
        documents: &["istio-system/m PEER {mtls: {mode: STRICT}}", "shop/n PEER {mtls: {mode: DISABLE}}"],
        rows: &[("192.0.2.7", 80, "", "allow"), ("job", 80, "", "allow")],
    },
    Group { documents: &["back/n PEER {mtls: {mode: STRICT}}"], rows: &[("192.0.2.7", 80, "", "allow")] },
    Group {
        documents: &["shop/n PEER {mtls: {mode: STRICT}}", "shop/w@app=web PEER {mtls: {mode: PERMISSIVE}}"],
        rows: &[("192.0.2.7", 80, "", "allow")],
    },
    Group {
        documents: &["shop/n PEER {mtls: {mode: STRICT}}", "shop/w@app=cart PEER {mtls: {mode: PERMISSIVE}}"],
        rows: &[("192.0.2.7", 80, "", "shop/n plaintext")],
    },
    Group {
        documents: &[
            "shop/w@app=web PEER {mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}, 9090: {}}}",
        ],
        rows: &[
            ("192.0.2.7", 80, "", "shop/w plaintext"),
            ("192.0.2.7", 8080, "", "allow"),
            ("192.0.2.7", 9090, "", "shop/w plaintext"),
        ],
    },
    Group {
        documents: &["shop/w@app=web PEER {portLevelMtls: {8080: {mode: STRICT}}}"],
        rows: &[
            ("192.0.2.7", 80, "", "allow"),
            ("192.0.2.7", 8080, "", "shop/w plaintext"),
            ("job", 8080, "", "allow"),
        ],
    },
    // It comes before the AuthorizationPolicies, which then know everybody's identity.
    Group {
        documents: &["shop/n PEER {mtls: {mode: STRICT}}", "shop/d DENY [{}]"],
        rows: &[
            ("192.0.2.7", 80, "", "shop/n plaintext"),
            ("job", 80, "", "shop/d 0"),
            ("job~", 80, "GET / web", "shop/n plaintext"),
        ],
    },
    Group {
        documents: &[
            "shop/n PEER {mtls: {mode: STRICT}}",
            "shop/a ALLOW [{from: [{source: {namespaces: [back]}}]}]",
        ],
        rows: &[
            ("job", 80, "", "allow"),
            ("job~", 80, "", "shop/n plaintext"),
            ("cart", 80, "", "shop/a none"),
        ],
    },
    Group {
        documents: &[
            "shop/n PEER {mtls: {mode: STRICT}}",
            "shop/a ALLOW [{to: [{operation: {methods: [GET]}}]}]",
        ],
        rows: &[
            ("job", 80, "GET / web", "allow"),
            ("job", 80, "PUT / web", "shop/a none"),
            ("job~", 80, "GET / web", "shop/n plaintext"),
        ],
    },
];

/// One of the documents above.
fn document(line: &str) -> String {
    let mut words = line.splitn(3, ' ');
    let mut next = || words.next().expect("a word");
    let (name, action, rest) = (next(), next(), next());
    let (name, label) = name.split_once('@').unwrap_or((name, ""));
    let (namespace, name) = name.split_once('/').expect("a namespace");
    let selector =
        label.split_once('=').map(|(key, value)| format!("selector: {{matchLabels: {{{key}: {value}}}}}"));
    let (action, dry_run) = action.strip_suffix('?').map_or((action, false), |action| (action, true));
    let kind = if action == "PEER" { "PeerAuthentication" } else { "AuthorizationPolicy" };
    let content = match (action, rest.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))) {
        ("PEER", Some(fields)) => fields.to_owned(),
        _ => format!("action: {action}, rules: {rest}"),
    };
    let spec: Vec<String> = selector.into_iter().chain([content]).collect();
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
         annotations: {{istio.io/dry-run: '{dry_run}'}}}}\nspec: {{{}}}\n",
        spec.join(", ")
    )
}

fn table(documents: &[&str]) -> RoutingTable {
    let texts: Vec<String> = documents.iter().map(|line| document(line)).collect();
    let state = load_texts(&[PODS, &texts.join("---\n")]);
    assert_eq!(messages(&state.report, Severity::Error), [""; 0], "{documents:?}");
    let realm = Realm { node: "here".into(), trust_domain: "mesh.test".into(), tunnels: true };
    let before = RoutingTable { realm: Arc::new(realm), ..RoutingTable::default() };
    compile(&state.model, &before, TableVersion::default())
}

fn client(who: &str) -> PolicyClient {
    let (relayed, who) = who.strip_prefix("gw:").map_or((false, who), |who| (true, who));
    let (who, plain) = who.strip_suffix('~').map_or((who, false), |who| (who, true));
    let address: IpAddr = match who {
        "cart" => [10, 0, 0, 2].into(),
        "job" => [10, 0, 1, 1].into(),
        "bare" => [10, 0, 1, 2].into(),
        address => address.parse().expect("an address"),
    };
    let way = match (relayed, who, plain) {
        (true, ..) => Way::Relayed,
        (false, "job", false) => Way::Tunnel,
        _ => Way::Direct,
    };
    PolicyClient { address, way }
}

#[test]
fn each_case_is_as_in_istio() {
    let mut cases = 0;
    for Group { documents, rows } in GROUPS {
        let table = table(documents);
        for (who, port, what, expected) in *rows {
            let endpoint = SocketAddr::new([10, 0, 0, 1].into(), *port);
            let request = Made::read(what);
            let asked = if what.is_empty() { Asked::Opaque } else { Asked::Request(&request) };
            let said = match table.check_access(client(who), endpoint, asked) {
                Ok(()) => "allow".to_owned(),
                Err(denied) => format!("{} {}", denied.policy, denied.rule_label()),
            };
            assert_eq!(said, *expected, "{documents:?}: {who} to {port}, `{what}`");
            cases += 1;
        }
    }
    assert!(cases >= 150, "{cases} cases");
}

#[test]
fn what_refuses_nobody_is_told() {
    // documents, who, port, what -> policy, rule and outcome of each
    type Case<'a> = (&'a [&'a str], &'a str, u16, &'a str, &'a [&'a str]);
    let cases: &[Case<'_>] = &[
        (&["shop/p AUDIT [{}]"], "cart", 80, "", &["shop/p 0 audited"]),
        (&["shop/p AUDIT []"], "cart", 80, "", &[]),
        (
            &["shop/p AUDIT [{to: [{operation: {methods: [GET]}}]}]"],
            "cart",
            80,
            "GET / web",
            &["shop/p 0 audited"],
        ),
        (&["shop/p AUDIT [{to: [{operation: {methods: [GET]}}]}]"], "cart", 80, "PUT / web", &[]),
        (&["shop/p AUDIT [{to: [{operation: {methods: [GET]}}]}]"], "cart", 80, "", &[]),
        (
            &["shop/p AUDIT [{from: [{source: {notPrincipals: ['*']}}]}]"],
            "job~",
            80,
            "",
            &["shop/p 0 audited"],
        ),
        (&["shop/p AUDIT [{from: [{source: {notPrincipals: ['*']}}]}]"], "job", 80, "", &[]),
        (
            &["shop/p AUDIT [{}]", "shop/q AUDIT [{}, {}]"],
            "cart",
            80,
            "",
            &["shop/p 0 audited", "shop/q 0 audited"],
        ),
        (&["shop/p DENY? [{to: [{operation: {ports: ['22']}}]}]"], "cart", 22, "", &["shop/p 0 would_deny"]),
        (&["shop/p DENY? [{to: [{operation: {ports: ['22']}}]}]"], "cart", 80, "", &[]),
        (&["shop/p ALLOW? [{to: [{operation: {ports: ['22']}}]}]"], "cart", 22, "", &[]),
        (
            &["shop/p ALLOW? [{to: [{operation: {ports: ['22']}}]}]"],
            "cart",
            80,
            "",
            &["shop/p none would_deny"],
        ),
        (&["shop/p ALLOW? []", "shop/q DENY? [{}]"], "cart", 80, "", &["shop/q 0 would_deny"]),
        (&["shop/p ALLOW? []", "shop/q ALLOW? [{}]"], "cart", 80, "", &[]),
        (&["shop/p DENY [{}]", "shop/q ALLOW [{}]"], "cart", 80, "", &[]),
        (&["back/p AUDIT [{}]"], "cart", 80, "", &[]),
    ];
    for (documents, who, port, what, expected) in cases {
        let table = table(documents);
        let endpoint = SocketAddr::new([10, 0, 0, 1].into(), *port);
        let request = Made::read(what);
        let asked = if what.is_empty() { Asked::Opaque } else { Asked::Request(&request) };
        let observed = table.observe_access(client(who), endpoint, asked);
        let said: Vec<_> = observed
            .iter()
            .map(|one| format!("{} {} {}", one.policy, one.rule_label(), one.outcome.as_str()))
            .collect();
        assert_eq!(said, *expected, "{documents:?}: {who} to {port}, `{what}`");
    }
}
