//! What stands before a function, and the events that it turns requests into.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

/// A request, as its sender wrote it.
#[derive(Clone)]
pub(crate) struct Sent<'a> {
    pub(crate) method: &'static str,
    /// The path behind what the front puts before it.
    pub(crate) path: &'static str,
    /// As it stands in the URL.
    pub(crate) query: &'a str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: &'a str,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Front {
    /// API Gateway's REST API, payload format 1.0; its stage is not in the path.
    RestApi,
    /// The same behind a domain that maps a base path to it, which stays in the path.
    RestApiOfDomain,
    /// API Gateway's HTTP API, payload format 2.0, with the stage that has no name.
    HttpApi,
    /// The same with a stage that has one, which is in the path.
    HttpApiStage,
    /// A function URL: payload format 2.0 as well.
    FunctionUrl,
    /// An Application Load Balancer.
    LoadBalancer,
}

impl Front {
    pub(crate) const ALL: [Self; 6] = [
        Self::RestApi,
        Self::RestApiOfDomain,
        Self::HttpApi,
        Self::HttpApiStage,
        Self::FunctionUrl,
        Self::LoadBalancer,
    ];

    /// The event that this front makes of a request, with its body as text or in base64.
    pub(crate) fn event(self, sent: &Sent<'_>, in_base64: bool) -> Value {
        let mut event = match self {
            Self::RestApi => rest_api(sent, sent.path),
            Self::RestApiOfDomain => rest_api(sent, &format!("/ci{}", sent.path)),
            Self::HttpApi => format_2(sent, "$default", sent.path, "api.execute-api"),
            Self::HttpApiStage => {
                let path = format!("/prod{}", sent.path);
                format_2(sent, "prod", &path, "api.execute-api")
            }
            Self::FunctionUrl => format_2(sent, "$default", sent.path, "function.lambda-url"),
            Self::LoadBalancer => load_balancer(sent),
        };
        event["isBase64Encoded"] = json!(in_base64);
        event["body"] = match in_base64 {
            true => json!(BASE64_STANDARD.encode(sent.body)),
            false => json!(sent.body),
        };
        event
    }
}

fn rest_api(sent: &Sent<'_>, path: &str) -> Value {
    let host = "api.execute-api.eu-west-1.amazonaws.com";
    let decoded = form_urlencoded::parse(sent.query.as_bytes());
    let decoded: Map<_, _> = decoded
        .into_owned()
        .map(|(name, value)| (name, value.into()))
        .collect();
    json!({
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": sent.method,
        "headers": once(host, &sent.headers),
        "multiValueHeaders": listed(&once(host, &sent.headers)),
        "queryStringParameters": or_null(decoded.clone()),
        "multiValueQueryStringParameters": or_null(listed(&decoded)),
        "pathParameters": null,
        "stageVariables": null,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": host,
            "httpMethod": sent.method,
            "identity": { "sourceIp": "192.0.2.1", "userAgent": "GitHub-Hookshot/1" },
            "path": format!("/prod{path}"),
            "protocol": "HTTP/1.1",
            "requestId": "id",
            "requestTimeEpoch": 1_795_000_000_000_u64,
            "resourceId": null,
            "resourcePath": "/",
            "stage": "prod",
        },
    })
}

fn format_2(sent: &Sent<'_>, stage: &str, path: &str, host: &str) -> Value {
    let host = format!("{host}.eu-west-1.amazonaws.com");
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": sent.query,
        "headers": once(&host, &sent.headers),
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": host,
            "domainPrefix": "api",
            "http": {
                "method": sent.method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "192.0.2.1",
                "userAgent": "GitHub-Hookshot/1",
            },
            "requestId": "id",
            "routeKey": "$default",
            "stage": stage,
            "time": "22/Nov/2026:12:00:00 +0000",
            "timeEpoch": 1_795_000_000_000_u64,
        },
    })
}

/// A load balancer leaves the query as it is.
fn load_balancer(sent: &Sent<'_>) -> Value {
    let pairs = sent
        .query
        .split('&')
        .filter_map(|pair| pair.split_once('='));
    let query: Map<_, _> = pairs
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    json!({
        "requestContext": { "elb": { "targetGroupArn": "arn:aws:elasticloadbalancing:…" } },
        "httpMethod": sent.method,
        "path": sent.path,
        "queryStringParameters": query,
        "headers": once("ci.example.org", &sent.headers),
    })
}

fn once(host: &str, headers: &[(&str, String)]) -> Map<String, Value> {
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    headers
        .chain([("host", host), ("x-forwarded-proto", "https")])
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect()
}

fn listed(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .map(|(name, value)| (name.clone(), json!([value])))
        .collect()
}

/// API Gateway says `null` where a request has no query.
fn or_null(map: Map<String, Value>) -> Value {
    match map.is_empty() {
        true => Value::Null,
        false => map.into(),
    }
}
