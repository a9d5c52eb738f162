"""Operations of the recogniser, a folder each: a public function, the pure-JAX reference that defines it, back ends."""
