package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

type object struct {
	kind schema.GroupVersionKind
	name string
	yaml []byte
}

// As `kustomize build` does.
func render(folder string) ([]object, []byte, error) {
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return nil, nil, err
	}
	text, err := result.AsYaml()
	if err != nil {
		return nil, nil, err
	}
	var objects []object
	for _, each := range result.Resources() {
		yaml, err := each.AsYAML()
		if err != nil {
			return nil, nil, err
		}
		id := each.GetGvk()
		kind := schema.GroupVersionKind{Group: id.Group, Version: id.Version, Kind: id.Kind}
		objects = append(objects, object{kind: kind, name: each.GetName(), yaml: yaml})
	}
	return objects, text, nil
}

// Of every YAML file that a rendering is made of; test/infra/kubernetes.test.ts makes the same.
func digestOfSources() (string, error) {
	hash := sha256.New()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == "rendered" || entry.Name() == "check") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(path, ".yaml") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(hash, "%s %d\n", filepath.ToSlash(relative), len(text))
		hash.Write(text)
		return nil
	})
	return fmt.Sprintf("%x", hash.Sum(nil)), err
}

// Writes what was rendered, or says how it differs from what lies there.
func keep(name, digest string, text []byte, write bool) (string, error) {
	file := filepath.Join(root, "rendered", name+".yaml")
	head := fmt.Sprintf("# Made by `npm run check:k8s -- -write`, from sources with the SHA-256 %s.\n", digest)
	whole := append([]byte(head), text...)
	if write {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return "", err
		}
		return "", os.WriteFile(file, whole, 0o644)
	}
	there, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	if bytes.Equal(there, whole) {
		return "", nil
	}
	return fmt.Sprintf("infra/k8s/rendered/%s.yaml is not what its sources make: npm run check:k8s -- -write", name), nil
}
