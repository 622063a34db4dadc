"""The studio's server: pages and JSON over run folders. It imports no JAX; what needs JAX is a process of its own."""
