"""The stores of each remote scheme, as `store.Store`; a module is imported when its scheme is first used."""
