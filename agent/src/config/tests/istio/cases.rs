//! The cases, as data.

/// Documents, and what becomes of connections and requests to the pod `shop/web` under them.
pub(super) struct Group {
    /// `NAMESPACE/NAME[@LABEL=VALUE] ACTION RULES`, or `NAMESPACE/NAME[@LABEL=VALUE] PEER SPEC`; `?` behind an action: a dry run.
    pub(super) documents: &'static [&'static str],
    pub(super) rows: &'static [Row],
}

/// Who asks, the pod's port, what is asked for, and what becomes of it.
///
/// Who: a pod's name, as it comes by itself; with `~` behind it, in plaintext; an address; `gw:` before it: through a Gateway.
/// What: empty for an opaque connection, else `METHOD PATH HOST FIELD=VALUE...`.
/// Becomes: `allow`, or the policy and its rule.
pub(super) type Row = (&'static str, u16, &'static str, &'static str);

/// All of them.
pub(super) const GROUPS: &[Group] = &[
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
