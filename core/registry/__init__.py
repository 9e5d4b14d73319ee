"""Discovery, selection and compatibility of plugins. Reads manifests as files; imports only what is chosen."""
