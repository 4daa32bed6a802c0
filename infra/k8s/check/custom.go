package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// Go modules that have the definitions of custom resources among their files. Nothing of them is compiled.
var definitions = []struct{ module, folder string }{
	{"github.com/kedacore/keda/v2@v2.21.0", "config/crd/bases"},
	{"github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd"},
}

type customSchema struct {
	structural *structuralschema.Structural
	validator  validation.SchemaValidator
}
type schemas map[schema.GroupVersionKind]customSchema

func loadSchemas() (schemas, error) {
	all := schemas{}
	for _, from := range definitions {
		folder, err := moduleFolder(from.module)
		if err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(folder, from.folder, "*.yaml"))
		if err != nil || len(files) == 0 {
			return nil, fmt.Errorf("%s: expected definitions in %s, found none (%v)", from.module, from.folder, err)
		}
		for _, file := range files {
			if err := all.load(file); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return all, nil
}

// Downloads it by Go's own client, once; its checksum is the checksum database's.
func moduleFolder(module string) (string, error) {
	command := exec.Command("go", "mod", "download", "-json", module)
	command.Stderr = os.Stderr
	output, err := command.Output()
	var found struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(output, &found); jsonErr != nil {
		return "", fmt.Errorf("%s: %w", module, errors.Join(err, jsonErr))
	}
	if found.Dir == "" {
		return "", fmt.Errorf("%s: %s", module, found.Error)
	}
	return found.Dir, nil
}

func (all schemas) load(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var definition v1.CustomResourceDefinition
	if err := yaml.Unmarshal(text, &definition); err != nil {
		return err
	}
	for _, version := range definition.Spec.Versions {
		var internal apiextensions.CustomResourceValidation
		if err := v1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(version.Schema, &internal, nil); err != nil {
			return err
		}
		structural, err := structuralschema.NewStructural(internal.OpenAPIV3Schema)
		if err != nil {
			return err
		}
		validator, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
		if err != nil {
			return err
		}
		kind := schema.GroupVersionKind{Group: definition.Spec.Group, Version: version.Name, Kind: definition.Spec.Names.Kind}
		all[kind] = customSchema{structural, validator}
	}
	return nil
}

// What the schema refuses, and what it does not know: an API server drops that without a word.
func (s customSchema) check(each object) []string {
	var content map[string]any
	if err := yaml.UnmarshalStrict(each.yaml, &content); err != nil {
		return []string{err.Error()}
	}
	problems := list(validation.ValidateCustomResource(nil, content, s.validator))
	options := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	for _, path := range pruning.PruneWithOptions(content, s.structural, true, options) {
		problems = append(problems, "unknown field "+path)
	}
	return problems
}
