use super::*;

fn parse(text: &str) -> Result<Recipe, RecipeError> {
    Recipe::parse(&toml::from_str(text).unwrap(), Path::new("/"))
}

/// A whole recipe without any file.
const OWN: &str = "
mask = { thickness_um = 3.7, center_mm = [0.45, 1.6, 0.75], angles_deg = [0.1, -0.5, 43.8], shift_mm = 0.2 }
scanner = { step_um = 0.5, axis = [1, 1, 0] }
detector = { shape = [2048, 2048], size_mm = [409.6, 409.6], rotation_rad = [-1.2, -1.2, -1.2], position_mm = [28.8, 2.8, 513] }
";

#[test]
fn a_recipe_needs_no_file() {
    let recipe = parse(OWN).unwrap();
    let Method::Aperture(setup) = &recipe.method else { panic!("{recipe:?}") };
    assert_eq!((setup.mask.bits.len(), setup.pose.step_um, setup.depth.bins), (256, 0.5, 401));
    assert!((norm(setup.pose.scanner_axis) - 1.0).abs() < 1e-12);
    let json = serde_json::to_string(&recipe).unwrap();
    assert_eq!(Recipe::from_json(&json).unwrap(), recipe);
    let every = parse(&format!("frames = [0, 401, 2]{OWN}")).unwrap();
    let Method::Aperture(setup) = every.method else { panic!() };
    assert_eq!(setup.pose.step_um, 1.0);
}

#[test]
fn a_configuration_is_laid_under_the_recipe() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.yml"), crate::technique::laue::cold::tests::SAMPLE).unwrap();
    let table = toml::from_str("configuration = 'c.yml'\nthreshold = 7\ndepth = { last_um = 50.0 }").unwrap();
    let recipe = Recipe::parse(&table, dir.path()).unwrap();
    let Method::Aperture(setup) = &recipe.method else { panic!() };
    assert_eq!((setup.threshold, setup.depth.bins, setup.footprint.degree), (7.0, 251, 5));
    assert_eq!(recipe.frames, [0, 401, 1]);
    assert!(recipe.notes.iter().any(|n| n.contains("comp.workers")));
}

#[test]
fn a_wire_needs_its_geometry() {
    let wire = "method = 'wire'\nwire = { diameter_um = 50, axis = [1, 0, 0], edge = 'both' }\n";
    assert_eq!(parse(wire).unwrap_err().key, "detector.shape");
    let recipe = parse(&format!("{wire}{OWN}")).unwrap();
    assert!(matches!(recipe.method, Method::Wire(s) if s.edge == Edge::Both && s.wire.diameter_um == 50.0));
}

#[test]
fn mistakes_are_named_with_their_key_and_remedy() {
    for (from, to, key, word) in [
        ("thickness_um = 3.7", "thickness_um = 3700", "mask.thickness_um", "0 to 100"),
        ("thickness_um = 3.7, ", "", "mask.thickness_um", "missing"),
        ("thickness_um", "thickness", "mask.thickness", "thickness_um"),
        ("[0.45, 1.6, 0.75]", "[0.45, 1.6]", "mask.center_mm", "length"),
        ("scanner =", "scaner =", "scaner", "scanner"),
        ("axis = [1, 1, 0]", "axis = [0, 0, 0]", "scanner.axis", "direction"),
        ("[2048, 2048]", "[0, 2048]", "detector.shape", "columns"),
        ("\nmask", "\nenergy = { fit_kev = [5, 90, 1] }\nmask", "energy.fit_kev", "40"),
        ("\nmask", "\nenergy = { fit_kev = [5.0, 30.0, 1.0], fixed_kev = 9.0 }\nmask", "energy", "both"),
        ("\nmask", "\nfootprint = { degree = 9 }\nmask", "footprint.degree", "0 to 7"),
        ("\nmask", "\nfootprint = { knots = 0 }\nmask", "footprint.knots", "window"),
        ("\nmask", "\nframes = [5, 5, 1]\nmask", "frames", "no frame"),
        ("\nmask", "\nregion = [0, 10]\nmask", "region", "4 whole"),
        ("\nmask", "\nmethod = 'wires'\nmask", "method", "aperture"),
        ("\nmask", "\nconfiguration = 'none.yml'\nmask", "configuration", "read"),
        ("\nmask", "\ndepth = { step_um = 0.001 }\nmask", "depth.step_um", "2000"),
        ("thickness_um", "code = 'none.npy', thickness_um", "mask.code", "debruijn"),
        ("\nmask", "\nper_depth = 1\nmask", "per_depth", "true or false"),
    ] {
        let text = OWN.replacen(from, to, 1);
        assert_ne!(text, OWN, "{from}");
        let e = parse(&text).unwrap_err();
        assert_eq!(e.key, key, "{e}");
        assert!(e.to_string().contains(word), "{word}: {e}");
    }
}
