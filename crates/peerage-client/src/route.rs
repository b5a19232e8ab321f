//! The routes of an API as data, so that servers, clients and the OpenAPI descriptions can be compared.

use std::fmt;

/// One operation of an API: a method on a path.
///
/// Parameters in the path are written `{name}`, as in OpenAPI and in axum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The HTTP method.
    pub method: Method,
    /// The path with its parameters, such as `/v1/tunnels/{id}`.
    pub path: &'static str,
}

/// The HTTP methods that the APIs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Reads, without any effect.
    Get,
    /// Creates something or does something.
    Post,
    /// Ends or removes what the path names.
    Delete,
}

impl Route {
    /// Makes a `GET` route.
    pub const fn get(path: &'static str) -> Self {
        Self { method: Method::Get, path }
    }

    /// Makes a `POST` route.
    pub const fn post(path: &'static str) -> Self {
        Self { method: Method::Post, path }
    }

    /// Makes a `DELETE` route.
    pub const fn delete(path: &'static str) -> Self {
        Self { method: Method::Delete, path }
    }
}

impl Method {
    /// Returns the method as it stands in a request line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
