//! Source: a repository of a registry, by ranged GET.
