//! Which proxy the configuration file or the environment names.

use crate::{
    config::NetworkConfig,
    failure::{Failure, Result},
};
use peerage_node::connect::{Connector, Exceptions, Proxy, ProxySettings};

/// What the configuration file says to use none, whatever the environment says.
const NONE: &str = "none";

/// The variables that name a proxy, the first that is set counts. As with curl, the small letters go first.
const PROXY_VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];

/// The variables that name what is reached without it.
const EXCEPTION_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];

/// Returns how connections are opened: the configuration file goes before the environment.
pub(crate) fn connector(config: &NetworkConfig) -> Result<Connector> {
    Ok(Connector::new(settings(config, |name| std::env::var(name).ok())?))
}

fn settings(
    config: &NetworkConfig,
    variable: impl Fn(&'static str) -> Option<String>,
) -> Result<Option<ProxySettings>> {
    let first = |names: &[&'static str]| {
        let set = names.iter().filter_map(|name| Some((*name, variable(name)?)));
        set.into_iter().find(|(_, value)| !value.is_empty())
    };
    let exceptions = || {
        let listed = config.no_proxy.as_ref().map(|listed| listed.join(","));
        Exceptions::parse(&listed.or_else(|| Some(first(&EXCEPTION_VARIABLES)?.1)).unwrap_or_default())
    };
    let made = |proxy, source| Some(ProxySettings { proxy, source, exceptions: exceptions() });
    if let Some(proxy) = &config.proxy {
        if proxy == NONE {
            return Ok(None);
        }
        let proxy = proxy.parse::<Proxy>().map_err(|error| {
            Failure::usage("the proxy in the configuration file cannot be used").why(error.to_string())
        })?;
        return Ok(made(proxy, "the configuration file"));
    }
    let Some((name, value)) = first(&PROXY_VARIABLES) else { return Ok(None) };
    match value.parse::<Proxy>() {
        Ok(proxy) => Ok(made(proxy, name)),
        // It is there for other programs too, and this one may do without.
        Err(error) => {
            tracing::warn!(variable = name, %error, "the proxy that the environment names is not used");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(config: &NetworkConfig, environment: &[(&str, &str)]) -> Result<Option<ProxySettings>> {
        let value =
            |name| environment.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
        settings(config, value)
    }

    fn configured(proxy: &str) -> NetworkConfig {
        NetworkConfig { proxy: Some(proxy.to_owned()), no_proxy: None }
    }

    #[test]
    fn the_configuration_goes_before_the_environment_and_small_letters_before_capitals() {
        let environment = [
            ("ALL_PROXY", "http://all:1"),
            ("HTTPS_PROXY", "http://capital:1"),
            ("https_proxy", "http://small:1"),
            ("NO_PROXY", "45.0.0.0/8"),
        ];
        let named = |config: &NetworkConfig, environment: &[(&str, &str)]| {
            let settings = chosen(config, environment).unwrap()?;
            let is_excepted = settings.exceptions.contain("45.0.0.1:1".parse().unwrap());
            Some((settings.proxy.to_string(), settings.source, is_excepted))
        };
        let shown = |proxy: &str, source, is_excepted| Some((proxy.to_owned(), source, is_excepted));
        let silent = NetworkConfig::default();
        assert_eq!(named(&silent, &environment), shown("small:1", "https_proxy", true));
        assert_eq!(named(&silent, &environment[..2]), shown("capital:1", "HTTPS_PROXY", false));
        assert_eq!(
            named(&silent, &[("https_proxy", ""), environment[0]]),
            shown("all:1", "ALL_PROXY", false)
        );
        assert_eq!(named(&silent, &[]), None);
        let file = "the configuration file";
        assert_eq!(named(&configured("http://own:1"), &environment), shown("own:1", file, true));
        assert_eq!(named(&configured("none"), &environment), None);
        let all = NetworkConfig { no_proxy: Some(Vec::new()), ..configured("http://own:1") };
        assert_eq!(named(&all, &environment), shown("own:1", file, false));
    }

    #[test]
    fn an_unusable_proxy_is_an_error_in_the_file_and_none_in_the_environment() {
        let error = chosen(&configured("http://ann:secret@"), &[]).unwrap_err().to_text();
        assert!(error.contains("http://HOST:PORT") && !error.contains("secret"), "{error}");
        assert_eq!(chosen(&NetworkConfig::default(), &[("ALL_PROXY", "socks5://web:1")]).unwrap(), None);
    }
}
